"""tables (to come)"""
from course.curriculum import Curriculum
def write(c: Curriculum) -> list[str]: return []
def stale(c: Curriculum) -> list[tuple[str,str]]: return []
