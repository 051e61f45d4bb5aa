"""ONNX files of pruned networks."""
