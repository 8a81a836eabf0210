"""What people see and type: streaming text, Markdown, the line editor, the clipboard."""
