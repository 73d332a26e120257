"""Episodes and what is made of them: collecting, planning, scoring, pictures."""
