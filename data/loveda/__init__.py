"""LoveDA: urban and rural scenes of 0.3 m from three Chinese cities."""
