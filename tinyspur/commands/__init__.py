"""The commands of python -m tinyspur, one module each."""
