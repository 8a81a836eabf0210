"""``python -m edge_llama``: the command line, where no script of its name is on the PATH."""

from edge_llama.cli import main

if __name__ == "__main__":
    main()
