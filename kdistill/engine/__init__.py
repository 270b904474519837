"""The engine: students, their passes without a graph, and training."""

from kdistill.engine.features import embed, embed_with_pullback
from kdistill.engine.students import STUDENTS, Student, build_student
from kdistill.engine.training import accuracy, loss_and_grad, train

__all__ = ["STUDENTS", "Student", "accuracy", "build_student", "embed", "embed_with_pullback", "loss_and_grad", "train"]
