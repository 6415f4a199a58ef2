"""The commands of a chat in the terminal."""

HELP = """\
/image PATH   show a picture (a path or an http(s) address) with the next question; more than once for several
/reset        forget the conversation and its pictures
/help         this list
/quit         end (or Ctrl-D); Ctrl-C stops an answer"""
