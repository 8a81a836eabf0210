"""What people see and type: streaming text, Markdown, pages, the clipboard."""
