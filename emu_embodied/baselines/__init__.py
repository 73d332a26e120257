"""Small networks that a world model is held against or judged by. They know pixels, and no world model."""
