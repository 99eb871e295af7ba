"""Charts: each is described once, and drawn as SVG for pages and by matplotlib for loggers and print."""
