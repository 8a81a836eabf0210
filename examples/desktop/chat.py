"""Chat with a model in a window: ``python chat.py [MODEL] [--ask TEXT]``.

The model works in a process of its own (``isolate=True``): this one loads no engine, so nothing native holds up the
window, and a model that kills its process is a line of text here. What may take more than a few milliseconds is done in
a thread; what it wants to be done in the window (a piece of an answer, too) waits in a queue that a timer empties.
"""

import argparse
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from PySide6 import QtCore, QtGui, QtWidgets

import edge_llama

SIDE = 160  # pixels of a picture's longer side, as it is shown
MODELS = "Models (*.gguf *.onnx edge-llama.json genai_config.json);;All files (*)"


def thumbnail(path: str) -> QtGui.QImage:
    """The picture, decoded as large as it is shown; a null image if the file is none."""
    reader = QtGui.QImageReader(path)
    reader.setAutoTransform(True)
    reader.setScaledSize(reader.size().scaled(SIDE, SIDE, QtCore.Qt.AspectRatioMode.KeepAspectRatio))
    return reader.read()


class Window(QtWidgets.QMainWindow):
    """A conversation with a model."""

    def __init__(self, ask: str = "") -> None:
        super().__init__(acceptDrops=True, windowTitle="edge-llama")
        self.model: edge_llama.Model | None = None
        self.chat: edge_llama.Chat | None = None
        self.thread_at_work: threading.Thread | None = None
        self.exit_code, self._ask, self._is_stopped, self._answer_at = 0, ask, False, 0
        self._pictures: list[tuple[str, QtGui.QImage]] = []
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()  # what threads want to have done here
        self._build()
        self._timer = QtCore.QTimer(self, interval=30, timeout=self._do_calls)
        self._timer.start()
        self._update()

    def _build(self) -> None:
        self.resize(720, 540)
        self.page = QtWidgets.QTextEdit(readOnly=True, acceptDrops=False)
        self.line = QtWidgets.QLineEdit(placeholderText="Say something", acceptDrops=False, returnPressed=self.send)
        self.bar = QtWidgets.QProgressBar(maximumWidth=160)
        self.statusBar().addPermanentWidget(self.bar)
        whole, row = QtWidgets.QWidget(), QtWidgets.QHBoxLayout()
        column = QtWidgets.QVBoxLayout(whole)
        column.addWidget(self.page)
        column.addWidget(self.line)
        column.addLayout(row)
        self.buttons: dict[str, QtWidgets.QPushButton] = {}
        for work in (self.open, self.picture, self.send, self.stop, self.retry):
            button = QtWidgets.QPushButton(work.__name__.capitalize(), clicked=partial(self._call, work))
            row.addWidget(button)
            self.buttons[work.__name__] = button
        self.setCentralWidget(whole)

    def _call(self, work: Callable[[], None], *_: object) -> None:
        work()

    def _in_thread(self, work: Callable[[], object], then: Callable[..., None]) -> threading.Thread:
        """Have ``then`` called in the window with what ``work`` gives in a thread."""

        def run() -> None:
            try:
                self._calls.put(partial(then, work()))
            except edge_llama.EdgeLlamaError as error:
                self._calls.put(partial(self._failed, error))

        thread = threading.Thread(target=run, daemon=True)  # one that loads is not waited for when the window closes
        thread.start()
        return thread

    def open(self) -> None:
        file = Path(QtWidgets.QFileDialog.getOpenFileName(self, "Open a model", filter=MODELS)[0])
        if file.name:
            self.load(str(file.parent if file.suffix == ".json" else file))

    def load(self, path: str) -> None:
        before, self.model, self.chat, self._is_stopped = self.model, None, None, False

        def work() -> tuple[edge_llama.Model, edge_llama.Chat]:
            if before:
                before.close()
            model = edge_llama.open(path, isolate=True, on_progress=self._tell_loaded)
            return model, model.chat()

        self.thread_at_work = self._in_thread(work, self._opened)
        self._update(f"loading {Path(path).name}")

    def _tell_loaded(self, part: float) -> None:
        if self._is_stopped:
            raise edge_llama.EdgeLlamaError("stopped")  # it ends the loading
        self._calls.put(partial(self._show_loaded, part))

    def _show_loaded(self, part: float) -> None:
        self.bar.setMaximum(100)
        self.bar.setValue(round(100 * part))

    def _opened(self, opened: tuple[edge_llama.Model, edge_llama.Chat]) -> None:
        (self.model, self.chat), self.thread_at_work = opened, None
        self._update(f"{self.model.artifact.path.name}: {self.model.n_ctx:,} tokens of context")
        if self._ask:
            self.send(self._ask)

    def picture(self) -> None:
        for file in QtWidgets.QFileDialog.getOpenFileNames(self, "Show pictures")[0]:
            self.attach(file)

    def attach(self, file: str) -> None:
        self._in_thread(partial(thumbnail, file), partial(self._attached, file))

    def _attached(self, file: str, image: QtGui.QImage) -> None:
        if not image.isNull():
            self._pictures.append((file, image))
        self._update(f"{file}: no picture" if image.isNull() else f"with the next message: {file}")

    def send(self, text: str = "") -> None:
        text = text or self.line.text().strip()
        if not self.chat or self.thread_at_work or not text:
            return
        self.line.clear()
        self._write("You: ", "steelblue")
        for _, image in self._pictures:
            self._end().insertImage(image)
            self._write("\n")
        self._write(f"{text}\n")
        shown, self._pictures = [path for path, _ in self._pictures], []
        self._begin(partial(self.chat.send, text, images=shown))

    def retry(self) -> None:
        if self.chat and self.chat.messages and not self.thread_at_work:
            cursor = self._end()
            cursor.setPosition(self._answer_at, QtGui.QTextCursor.MoveMode.KeepAnchor)
            cursor.removeSelectedText()
            self._begin(self.chat.retry)

    def _begin(self, begin: Callable[[], edge_llama.Generation]) -> None:
        self._is_stopped, self._answer_at = False, self._end().position()
        self._write("Model: ", "steelblue")

        def work() -> edge_llama.Answer:
            generation = begin()  # pictures are decoded here
            if self._is_stopped:
                generation.cancel()
            for piece in generation:
                self._calls.put(partial(self._write, piece.thinking, "gray"))
                self._calls.put(partial(self._write, piece.text))
            return generation.result()

        self.thread_at_work = self._in_thread(work, self._answered)
        self._update("answering")

    def _answered(self, answer: edge_llama.Answer) -> None:
        self._end_work("\n")
        self._update(f"{answer.finish_reason}: {answer.timings.tokens_per_second:,.0f} tokens a second")
        if self._ask:
            print(answer.text)
            self.close()

    def _failed(self, error: edge_llama.EdgeLlamaError) -> None:
        self._end_work(f"{error}\n", "firebrick")
        self._update("failed")
        if self._ask:
            print(error, file=sys.stderr)
            self.exit_code = error.exit_code
            self.close()

    def _end_work(self, text: str, color: str = "") -> None:
        self.thread_at_work = None
        self._write(text, color)

    def stop(self) -> None:
        self._is_stopped = True
        if self.chat:
            self.chat.cancel()

    def _do_calls(self) -> None:
        while not self._calls.empty():
            self._calls.get()()

    def _end(self) -> QtGui.QTextCursor:
        cursor = self.page.textCursor()
        cursor.movePosition(QtGui.QTextCursor.MoveOperation.End)
        return cursor

    def _write(self, text: str, color: str = "") -> None:
        look = QtGui.QTextCharFormat()
        if color:
            look.setForeground(QtGui.QColor(color))
        self._end().insertText(text, look)  # as text: nothing that a model writes becomes markup
        self.page.verticalScrollBar().setValue(self.page.verticalScrollBar().maximum())

    def _update(self, message: str = "") -> None:
        is_ready = bool(self.chat) and not self.thread_at_work
        self.buttons["open"].setEnabled(not self.thread_at_work)
        self.buttons["picture"].setEnabled(is_ready and bool(self.model and self.model.vision))
        self.buttons["send"].setEnabled(is_ready)
        self.buttons["stop"].setEnabled(bool(self.thread_at_work))
        self.buttons["retry"].setEnabled(is_ready and bool(self.chat and self.chat.messages))
        self.bar.setMaximum(0)  # busy: nobody knows yet how long it takes
        self.bar.setVisible(bool(self.thread_at_work))
        self.statusBar().showMessage(message)

    def dragEnterEvent(self, event: QtGui.QDragEnterEvent) -> None:
        if self.buttons["picture"].isEnabled() and event.mimeData().hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QtGui.QDropEvent) -> None:
        for url in event.mimeData().urls():
            self.attach(url.toLocalFile())

    def closeEvent(self, _event: QtGui.QCloseEvent) -> None:
        """In the middle of an answer too: it is stopped, and the model's process ends with the window."""
        self.stop()
        if self.model:
            self.model.close()
        if self.thread_at_work:
            self.thread_at_work.join(5)  # one that loads ends when it next tells how far it is


def main() -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="Chat with a model in a window.")
    parser.add_argument("model", nargs="?", help="a .gguf file, or the folder of an ONNX model or a bundle")
    parser.add_argument("--ask", default="", help="ask this at once, print the answer, and leave")
    given = parser.parse_args()
    app, window = QtWidgets.QApplication(sys.argv[:1]), Window(given.ask)
    window.show()
    QtCore.QTimer.singleShot(0, partial(window.load, given.model) if given.model else window.open)
    return app.exec() or window.exit_code


if __name__ == "__main__":
    sys.exit(main())
