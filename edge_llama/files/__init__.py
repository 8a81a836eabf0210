"""What lies on disk, read and checked before an engine sees it. No native code."""
