"""Networks whose features judge images, and the weights of those that are shipped."""
