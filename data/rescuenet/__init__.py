"""RescueNet: photographs of a drone after Hurricane Michael, on five classes shared with Potsdam."""
