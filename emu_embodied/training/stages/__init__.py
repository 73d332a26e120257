"""What can be trained on top of the trajectory model or beside it, one file a stage."""
