"""A thousand rows for the bundled model: prompts with styles, of several sizes, steps and guidance scales.

python emoji_rows.py emoji.csv --rows 1000
"""

from __future__ import annotations

import argparse
import csv

SUBJECTS = (
    "grinning cat",
    "red apple",
    "panda",
    "fire",
    "blue heart",
    "fox",
    "pizza",
    "full moon",
    "rose",
    "dog",
)
STYLES = ("", ", noto emoji", ", blob emoji", ", flat emoji", ", fluent emoji", ", twemoji")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    with open(args.file, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "width", "height", "steps", "guidance_scale"])
        for k in range(args.rows):
            prompt = SUBJECTS[k % len(SUBJECTS)] + STYLES[k // len(SUBJECTS) % len(STYLES)]
            width, height = (128, 64) if k % 5 == 0 else (128, 128)
            writer.writerow(
                [f"emoji-{k:04d}", prompt, width, height, args.steps + k % 2, 3 if k % 7 == 0 else 5]
            )


if __name__ == "__main__":
    main()
