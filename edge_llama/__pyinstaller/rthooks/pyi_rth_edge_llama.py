"""Runs in a frozen program before its own first line: one that was started to be a child does its work, and ends."""

import sys

sys.edge_llama_answers_reserved_argument = True  # type: ignore[attr-defined]  # host.child looks for it
if sys.argv[1:2] == ["--edge-llama-child"]:
    from edge_llama.host.child import main

    main()
