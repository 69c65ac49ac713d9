"""A verdict in every format that a person, a program or a CI service reads."""
