"""What all other tests here need. Without it they aren't collected, and this one is skipped with the reason."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_there_is_a_browser_for_the_tests_of_the_page(browser: "Browser") -> None:
    assert browser.version
