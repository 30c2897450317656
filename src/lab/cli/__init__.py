"""The command line's verbs, one a file, each imported only when it is asked for."""
