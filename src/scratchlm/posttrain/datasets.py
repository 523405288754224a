"""Conversations and preferences from files."""



class Instructions:
    """Conversations to learn from."""


class Preferences:
    """Prompts with a better and a worse answer."""
