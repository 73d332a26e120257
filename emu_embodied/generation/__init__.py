"""Token sequences out of a model: interleaved text and images, and key frames from a sentence. Knows no env."""
