"""Students searched for under the teacher's guidance: weight-sharing supernets and joint search."""
