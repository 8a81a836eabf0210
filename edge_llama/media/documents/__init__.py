"""Documents down to their text: text in any encoding, Markdown, code, CSV, HTML, PDF, docx."""
