"""Keys of the contract kit's dataset by the names of their files."""

KEYS = {
    "a": "a.png",
    "b/a": "b/a.png",
    "up": "../up.png",
    "zoë_ _x__": "zoë, 'x'\n.png",
    "con_tar": "con.tar.gz",
    "a-2": "a",
}
IN_ORDER = [*KEYS.values()]
LABELS = {"a.png": 0, "b/a.png": 1, "../up.png": 2, "zoë, 'x'\n.png": 3, "con.tar.gz": 4, "a": 6}
