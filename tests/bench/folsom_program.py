"""Runs a program of a Folsom tree, on Python 2.7: folsom_program.py SITE TREE PROGRAM [WORD]...

SITE is the folder of what it imports, TREE the tree.
"""
import runpy
import site
import sys

site.addsitedir(sys.argv[1])
sys.path.insert(0, sys.argv[2])
sys.argv[:] = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name='__main__')
