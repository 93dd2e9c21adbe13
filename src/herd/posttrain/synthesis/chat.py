"""Turns that need no tool: greetings, thanks, what the assistant can do, what a term means."""

from __future__ import annotations

SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (  # ways to say it, ways to answer
    (
        ("Hello", "Hi there", "Hi!", "Good morning", "Hey"),
        ("Hello! Ask me anything about this table.", "Hi! What would you like to know about the table?"),
    ),
    (
        ("Thanks", "Thank you!", "Great, thank you", "Perfect, thanks a lot", "ok thanks"),
        ("You are welcome.", "Glad to help. Ask me more whenever you like."),
    ),
    (
        ("What can you do?", "How can you help me?", "What are you able to do?", "Who are you?", "help"),
        ("I answer questions about this table by running small pandas programs: totals, counts, groups and more.",),
    ),
    (
        ("What is a median?", "What does median mean?", "Explain the median", "what's a median"),
        ("The median is the middle value: half of the values are below it and half above.",),
    ),
    (
        ("What is the difference between mean and median?", "How does a mean differ from a median?"),
        ("The mean adds all values and divides by their number; the median is the middle one.",),
    ),
    (
        ("What is a correlation?", "What does correlation mean?", "Explain correlation to me"),
        ("A correlation says how closely two numbers move together, from -1 to 1; 0 means no linear relation.",),
    ),
    (
        ("What is a standard deviation?", "What does standard deviation mean?", "explain std"),
        ("The standard deviation says how far values typically lie from their mean.",),
    ),
    (
        ("What does missing mean?", "What is a missing value?", "what are missing values"),
        ("A missing value is a cell of the table that was left empty.",),
    ),
    (
        ("What is pandas?", "Do you use pandas?", "Which library do you use?"),
        ("pandas is a Python library for tables; I use it to compute my answers.",),
    ),
    (
        (
            "Does my data leave this computer?",
            "Is my data sent anywhere?",
            "Is this private?",
            "Where does my file go?",
        ),
        ("No. I run on this machine, and nothing leaves it.",),
    ),
    (
        ("Tell me a joke", "Sing a song", "What's the weather?", "Who won the election?", "Write me a poem"),
        (
            "I only work with this table. Ask me about its columns.",
            "That is beyond me; I answer questions about this table.",
        ),
    ),
    (("Bye", "Goodbye", "See you", "That's all"), ("Goodbye!", "See you next time.")),
    (
        ("ok", "I see", "Interesting", "good", "Nice"),
        ("What else would you like to know?", "Anything else about the table?"),
    ),
)
HELD_OUT_SMALL_TALK = (
    "Good evening!",
    "Many thanks for that",
    "What sort of things can I ask?",
    "In plain words, what's a median?",
    "Is anything uploaded to the internet?",
    "Could you book me a flight?",
    "That will be all for today",
    "What does it mean when two columns correlate?",
    "Could you say what standard deviation tells me?",
    "Alright",
)
