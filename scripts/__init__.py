"""What sets the project up on a machine and runs it there; standard library only, till set up."""
