"""Executors of the model's steps: compiled, ONNX Runtime, TensorRT. The eager one is `emu_embodied.inference.frame_step`."""
