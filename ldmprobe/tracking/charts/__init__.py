"""Charts: each is described once, and drawn by plotly for pages and by matplotlib for loggers and print."""
