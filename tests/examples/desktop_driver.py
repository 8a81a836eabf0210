"""Drives the desktop example as a person would, in its own event loop, and prints what came of it as JSON.

    python desktop_driver.py SCENARIO MODEL [PICTURE]

A scenario is a generator: it does something, and yields what is to be true before it goes on. A timer of 5 ms looks
whether it is, and how long the event loop did not come to it.
"""

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

ROOT = Path(__file__).resolve().parent.parent.parent
STORY = "Tell me a very long story about a llama, with every detail."
found: dict[str, Any] = {"longest": 0.0}
Scenario = Iterator[Callable[[], object]]


def chat_module() -> Any:
    spec = importlib.util.spec_from_file_location("desktop_chat", ROOT / "examples" / "desktop" / "chat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Driver(QtCore.QObject):
    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self._scenario, self._is_true = scenario, next(scenario)
        self._last = time.perf_counter()
        self._timer = QtCore.QTimer(self, interval=5, timerType=QtCore.Qt.TimerType.PreciseTimer, timeout=self.look)
        self._timer.start()

    def look(self) -> None:
        now = time.perf_counter()
        found["longest"] = max(found["longest"], now - self._last)
        self._last = now
        if self._is_true():
            self._is_true = next(self._scenario, lambda: False)


def ask(window: Any, text: str) -> Scenario:
    window.line.setText(text)
    window.send()
    yield lambda: not window.thread_at_work


def said(window: Any) -> list[str]:
    return [message.content for message in window.chat.messages]


def answers(window: Any, *_: str) -> Scenario:
    yield lambda: window.chat
    window.chat.options["temperature"] = 0
    yield from ask(window, "What is the capital of Japan?")
    yield from ask(window, "Count from one to twenty.")
    found.update(page=window.page.toPlainText(), said=said(window), status=window.statusBar().currentMessage())
    window.close()


def stops(window: Any, *_: str) -> Scenario:
    yield lambda: window.chat
    window.line.setText(STORY)
    window.send()
    yield lambda: window.page.toPlainText().count(" ") > 20
    began = time.perf_counter()
    window.stop()
    yield lambda: not window.thread_at_work
    found.update(seconds=time.perf_counter() - began, stopped=said(window), status=window.statusBar().currentMessage())
    window.chat.options["max_tokens"] = 8
    window.retry()
    yield lambda: not window.thread_at_work
    found.update(retried=said(window), page=window.page.toPlainText())
    window.close()


def closes(window: Any, *_: str) -> Scenario:
    yield lambda: window.chat
    found["pid"] = window.model.worker_pid
    window.line.setText(STORY)
    window.send()
    yield lambda: window.page.toPlainText().count(" ") > 20
    window.close()


def closes_while_loading(window: Any, *_: str) -> Scenario:
    began = time.perf_counter()
    yield lambda: time.perf_counter() - began > 0.2
    found["loading"] = bool(window.thread_at_work)
    window.close()


def survives(window: Any, *_: str) -> Scenario:
    yield lambda: window.chat
    window.line.setText(STORY)
    window.send()
    yield lambda: window.page.toPlainText().count(" ") > 20
    os.kill(window.model.worker_pid, signal.SIGKILL)
    yield lambda: not window.thread_at_work
    found["page"] = window.page.toPlainText()
    window.chat.options["max_tokens"] = 4
    yield from ask(window, "Hello")
    found["said"] = said(window)
    window.close()


def refuses(window: Any, *_: str) -> Scenario:
    yield lambda: not window.thread_at_work
    found.update(page=window.page.toPlainText(), can_open=window.buttons["open"].isEnabled())
    window.close()


def drop(window: Any, file: str) -> bool:
    """Let go of a file over the window; whether it takes it."""
    data = QtCore.QMimeData()
    data.setUrls([QtCore.QUrl.fromLocalFile(file)])
    given = QtCore.QPointF(9, 9), QtCore.Qt.DropAction.CopyAction, data
    held = QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
    enter = QtGui.QDragEnterEvent(*given, *held)
    QtWidgets.QApplication.sendEvent(window, enter)
    QtWidgets.QApplication.sendEvent(window, QtGui.QDropEvent(*given, *held))
    return enter.isAccepted()


def sees(window: Any, picture: str, grabbed: str) -> Scenario:
    """A file that is no picture is dropped on the window, and one that is."""
    window.resize(560, 320)
    yield lambda: window.chat
    window.chat.options["temperature"] = 0
    found["is_accepted"] = drop(window, __file__)
    yield lambda: window.statusBar().currentMessage().endswith("desktop_driver.py: no picture")
    drop(window, picture)
    yield lambda: window._pictures
    yield from ask(window, "Which digits are these?")
    html = window.page.toHtml()
    found.update(
        said=window.chat.messages[-1].content, images=html.count("<img"), parts=len(window.chat.messages[0].parts)
    )
    is_on_screen = QtGui.QGuiApplication.platformName() == "xcb"
    (window.screen().grabWindow(window.winId()) if is_on_screen else window.grab()).save(grabbed)
    window.close()


def main() -> None:
    scenario, model, *arguments = sys.argv[1:]
    app, module = QtWidgets.QApplication(sys.argv[:1]), chat_module()
    window = module.Window()
    window.show()
    QtCore.QTimer.singleShot(0, lambda: window.load(model))
    QtCore.QTimer.singleShot(1, lambda: found.update(driver=Driver(globals()[scenario](window, *arguments))))
    found["code"] = app.exec() or window.exit_code
    del found["driver"]
    end = time.monotonic() + 2  # one that has done its work may be on its last line
    while (others := set(threading.enumerate()) - {threading.main_thread()}) and time.monotonic() < end:
        time.sleep(0.01)
    found["threads"] = sorted(thread.name for thread in others)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
