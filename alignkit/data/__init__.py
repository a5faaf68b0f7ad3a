"""Rows, nothing else: files of any format, their columns and values, chats, splits."""
