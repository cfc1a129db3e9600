"""One operator a folder: its formula, its kernels, its ONNX record."""
