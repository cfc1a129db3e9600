"""A depthwise convolution over a few positions."""
