"""What a fork of a process with a model may do with it: get errors, and harm nothing."""

IN_THE_FORK = """
for use in (lambda: model.generate("x"), lambda: chat.send("x"), running.result, lambda: next(running)):
    try:
        use()
    except edge_llama.EngineError as error:
        assert "fork" in str(error), error
    else:
        os._exit(3)
running.cancel()
del running
model.close()
sys.exit(0)
"""
"""The end of a script that opened ``model``, with its ``chat`` and a ``running`` generation, after ``os.fork()``."""
