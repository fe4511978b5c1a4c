"""The command line: each command is options, help with an example, and one call into the library."""
