"""Opens every input file and writes every output file; errors and limits are typed.

Input files are data from elsewhere: only regular files are opened, each kind has a limit of
size, and what a compressed file declares is checked before it is inflated.
"""
