//! What this process tells of itself: JSON lines, and spans that nest under the runs it works on.
