// Standard error as a terminal, with one live line below the output.
#pragma once

#include <string>

namespace dsv3 {

/// Whether standard error is a terminal on which the cursor can move: not a file, a pipe or
/// TERM=dumb.
bool stderr_is_terminal();
/// Whether to colour text on standard error: on such a terminal, unless NO_COLOR is set and not
/// empty (no-color.org).
bool stderr_has_colors();

/// Draws `line`, in ASCII, on the current row, which must be empty. Cuts it to the terminal's
/// current width. Draws nothing if `line` is empty or standard error is not a terminal.
void draw_live_line(const std::string& line);
/// Erases the live line, if one is drawn.
void erase_live_line();
/// Leaves the live line, if one is drawn, on the screen, and continues below it. May be called in a
/// signal handler.
void end_live_line();

}  // namespace dsv3
