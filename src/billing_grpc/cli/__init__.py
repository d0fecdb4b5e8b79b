"""The commands of the program, one module each, loaded when they are used."""
