"""From weights to frames: the steps that a frame takes, the loops over them, and the engines that execute them."""
