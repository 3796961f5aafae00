"""Operations over space that encoders and cells share, in the form that is fast where they run."""
