"""A trained detector as a file for other programs: MindIR and ONNX, and the check of both."""
