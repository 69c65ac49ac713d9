"""Input and output files: every input is opened here, and every output written here.

Input files are untrusted. Only regular files are opened, each kind has a size limit, and the
declared size of compressed content is checked before it is inflated. Errors are typed.
"""
