/* The model of page.pml: what the home does. Inlines of one step, with its scratch variables. */

inline invalidate_each(set) {
  y = set;
  for (j : 0 .. N - 1) {
    if
    :: HAS(y, j) -> inval[me * N + j]!INVALIDATE, pg, creq[pg], 0, 0, 0, cser[pg], 0
    :: else
    fi
  }
}
inline answer(right, source, set) {
  fault[LANE(ckind[pg]) + me * N + creq[pg]]!ANSWER, pg, creq[pg], right, source, set, cser[pg], 0
}
inline forward(set) {
  fault[LANE(ckind[pg]) + me * N + downer[pg]]!FORWARD, pg, creq[pg], ckind[pg], 0, set, cser[pg], 0
}
/* What the reader has peeked, or will, is what the page is. */
#ifdef BUG_OLD_PEEKS
#define NEWEST (casked == downer[pg] + 1)
#else
#define NEWEST (casked == downer[pg] + 1 && owned <= csince)
#endif
inline grant() {
#ifdef LIVE
  serial[pg] = (serial[pg] % 3) + 1;   /* no more than two are known at a time */
#else
  serial[pg]++;
#endif
  cser[pg] = serial[pg];
  ds[pg] = D_Busy;
#ifdef PEEK
  if
  :: ckind[pg] != READ -> owned = serial[pg]
  :: else
  fi;
#endif
  x = dcopy[pg];
  if
  :: OWNED(before[pg]) -> x = x | BIT(downer[pg])
  :: else
  fi;
  z = S_ZERO;
  if
  :: before[pg] == D_Stored -> z = S_STORED
  :: else
  fi;
  aowner[pg] = creq[pg]; acopy[pg] = 0; leaves[pg] = 0; leaver[pg] = 0;
  if
  :: ckind[pg] == READ ->
    acopy[pg] = x | BIT(creq[pg]);
    aowner[pg] = downer[pg];
    if
#ifdef PEEK
    :: OWNED(before[pg]) && NEWEST -> after[pg] = D_Shared; answer(R_SHARED, S_PEEKED, 0)
    :: OWNED(before[pg]) && !NEWEST -> after[pg] = D_Shared; forward(0)
#else
    :: OWNED(before[pg]) -> after[pg] = D_Shared; forward(0)
#endif
    :: else ->
      after[pg] = before[pg];
#ifdef BUG_READER_FORGOTTEN
      acopy[pg] = x;
#endif
      answer(R_SHARED, z, 0)
    fi
  :: ckind[pg] == TAKE ->
    after[pg] = before[pg];
    if
    :: before[pg] == D_Shared -> acopy[pg] = (x & ~BIT(downer[pg])) | BIT(creq[pg])
    :: else
    fi;
    leaves[pg] = 1; leaver[pg] = downer[pg];
    forward(0)
  :: else ->
    after[pg] = D_Exclusive;
    if
    :: OWNED(before[pg]) && downer[pg] != creq[pg] -> leaves[pg] = 1; leaver[pg] = downer[pg]
    :: else
    fi;
    x = x & ~BIT(creq[pg]);   /* those who lose their copy; whether the requester has one is told apart below */
    if
#ifdef BUG_TRUST_COPY
    :: chas[pg] || ckind[pg] == OVER ->
#else
    :: (chas[pg] && (HAS(dcopy[pg], creq[pg]) || (OWNED(before[pg]) && downer[pg] == creq[pg]))) || ckind[pg] == OVER ->
#endif
      answer(R_EXCLUSIVE, S_NONE, x);
      invalidate_each(x)
    :: else ->
      if
      :: OWNED(before[pg]) ->
        x = x & ~BIT(downer[pg]);
        forward(x);
        invalidate_each(x)
      :: else ->
        answer(R_EXCLUSIVE, z, x);
        invalidate_each(x)
      fi
    fi
  fi
}
/* Begins rq's request (kd, fl) or refuses it. */
inline begin() {
  if
  :: ds[pg] == D_Lost -> fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, LOST, 0, 0, 0
  :: ds[pg] != D_Lost && kd == TAKE && (!OWNED(ds[pg]) || downer[pg] == rq) ->
    fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, NOTHING, 0, 0, 0
  :: else ->
    assert(!(OWNED(ds[pg]) && downer[pg] == rq && (!fl || kd == READ)));
    creq[pg] = rq; ckind[pg] = kd; chas[pg] = fl; before[pg] = ds[pg];
#ifdef PEEK
    casked = ak; csince = se;
#else
    assert(ds[pg] != D_Exclusive || downer[pg] != rq);
#endif
    if
#ifndef BUG_UNMIRRORED
    :: (kd == WRITE || kd == OVER) && !ever[pg] -> ds[pg] = D_Mirroring; mirror!pg
#endif
    :: else -> grant()
    fi
  fi
}
inline begin_waiting() {
  do
  :: len(waiting[pg]) > 0 && !UNDERWAY(ds[pg]) && !frozen[pg] -> waiting[pg]?rq, kd, fl AND_PEEK; begin()
  :: else -> break
  od
}
inline settle() {
  if
#ifdef BUG_RELEASES_OVERTAKE
  :: true ->
#else
  :: !(leaves[pg] && rel[pg]) ->
#endif
    ds[pg] = after[pg]; downer[pg] = aowner[pg]; dcopy[pg] = acopy[pg];
    if
    :: leaves[pg] ->
      rel[pg] = 1; relnode[pg] = leaver[pg]; relser[pg] = cser[pg];
      fault[me * N + leaver[pg]]!RELEASE, pg, 0, 0, 0, 0, cser[pg], 0
    :: else
    fi;
    forget_current();
#ifndef BUG_QUEUE_FORGOTTEN
    begin_waiting()
#endif
#ifndef BUG_RELEASES_OVERTAKE
  :: else
#endif
  fi
}
inline forget_current() {
  creq[pg] = 0; ckind[pg] = 0; chas[pg] = 0; cser[pg] = 0; before[pg] = 0; after[pg] = 0; aowner[pg] = 0;
  acopy[pg] = 0; leaves[pg] = 0; leaver[pg] = 0;
#ifdef PEEK
  casked = 0; csince = 0;
#endif
  if
  :: !OWNED(ds[pg]) -> downer[pg] = 0
  :: else
  fi
}
