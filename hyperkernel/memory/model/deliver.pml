/* The model of page.pml: which message means what. */

/* A fault-class message has come to me. */
inline deliver() {
  old = st[X(me)];
  dold = ds[pg];
#ifdef PEEK
  if
  :: (ty == FORWARD || ty == ANSWER || ty == RELEASE) && se > heard[me] -> heard[me] = se
  :: else
  fi;
#endif
  if
  /* to the home */
  :: ty == REQUEST ->
    if
    :: at[pg] != me ->
      fault[LANE(kd) + me * N + rq]!NACK, pg, rq, 0, MOVED, 0, 0, 0;
      DROW(D_Elsewhere, kd, D_Elsewhere)
    :: else ->
      ev = kd;
      if
      :: UNDERWAY(ds[pg]) || frozen[pg] ->
        assert(ds[pg] != D_Mirroring || creq[pg] != rq);   /* while Busy it may have overtaken its own Done */
#ifdef BUG_OVERTAKING_REFUSED
        assert(ds[pg] != D_Busy || creq[pg] != rq);
#endif
        waiting[pg]!rq, kd, fl AND_PEEK
      :: else -> begin()
      fi;
      DROW(dold, ev, ds[pg])
    fi
  :: ty == DONE ->
    assert(at[pg] == me && ds[pg] == D_Busy && se == cser[pg]);
    ds[pg] = D_Settling;
#ifdef PEEK
    if
    :: fl -> assert(casked != 0); after[pg] = before[pg]; acopy[pg] = dcopy[pg]
    :: else
    fi;
#endif
    settle();
    DROW(dold, DE_Done, ds[pg])
  :: ty == RELEASED ->
    assert(at[pg] == me);
    if
    :: rel[pg] && relser[pg] == se ->
      rel[pg] = 0; relnode[pg] = 0; relser[pg] = 0;
      if
      :: ds[pg] == D_Settling -> settle()
      :: else
      fi;
      DROW(dold, DE_Released, ds[pg])
    :: else
#ifndef BUG_RELEASES_OVERTAKE
      -> assert(false)
#endif
    fi
  :: ty == EVICT_ ->
    if
    :: at[pg] != me -> fault[me * N + from]!EVICTDENIED, pg, 0, 0, 0, 0, 0, 0; DROW(D_Elsewhere, DE_Evict, D_Elsewhere)
    :: at[pg] == me && OWNED(ds[pg]) && downer[pg] == from && !frozen[pg] && !rel[pg] ->
      dcopy[pg] = dcopy[pg] & ~BIT(from);
      downer[pg] = 0;
      ds[pg] = D_Stored;
      fault[me * N + from]!EVICTGRANTED, pg, 0, 0, 0, 0, 0, 0;
      DROW(dold, DE_Evict, ds[pg])
    :: else ->
#ifdef BUG_EVICTS_WHILE_BUSY
      if
      :: ds[pg] == D_Busy && downer[pg] == from && OWNED(before[pg]) ->
        fault[me * N + from]!EVICTGRANTED, pg, 0, 0, 0, 0, 0, 0
      :: else -> fault[me * N + from]!EVICTDENIED, pg, 0, 0, 0, 0, 0, 0
      fi;
#else
      fault[me * N + from]!EVICTDENIED, pg, 0, 0, 0, 0, 0, 0;
#endif
      DROW(dold, DE_Evict, ds[pg])
    fi
  /* to a node */
  :: ty == FORWARD ->
    assert(OWNING(st[X(me)]));
    ev = E_ForwardRead + (kd == WRITE -> 1 : (kd == TAKE -> 2 : 0));
    z = ev;
    kd = z;
    revocation();
    PROW(old, kd, st[X(me)])
  :: ty == ANSWER ->
    assert(PENDING(st[X(me)]) && !got[X(me)]);
    if
    :: kind[X(me)] == WRITE -> assert((fl == S_NONE) == (st[X(me)] != P_FetchWrite))
    :: else
    fi;
    got[X(me)] = 1; gright[X(me)] = kd; gsrc[X(me)] = fl; need[X(me)] = ak; gser[X(me)] = se; gver[X(me)] = ve;
    install();
    PROW(old, E_Answer, st[X(me)])
  :: ty == NACK ->
    assert(PENDING(st[X(me)]));
    x = kind[X(me)];
    kind[X(me)] = 0;
#ifdef PEEK
    pk[me] = 0; pver[me] = 0;
#endif
    assert(fl != LOST || crashed);
    if
    :: st[X(me)] == P_Upgrade -> st[X(me)] = P_Shared
    :: st[X(me)] == P_OwnerUpgrade -> st[X(me)] = P_Owner
    :: else -> st[X(me)] = P_Absent
    fi;
    PROW(old, E_Nack, st[X(me)]);
    if
    :: fl == MOVED ->   /* again, at the new home */
      view[X(me)] = 1;
      y = (st[X(me)] != P_Absent);
      request(x, y);
      old = st[X(me)];
      if
      :: x == READ -> st[X(me)] = P_FetchRead
      :: st[X(me)] == P_Shared -> st[X(me)] = P_Upgrade
      :: st[X(me)] == P_Owner -> st[X(me)] = P_OwnerUpgrade
      :: else -> st[X(me)] = P_FetchWrite
      fi
    :: else
    fi
#ifdef PEEK
  :: ty == PEEK_ -> peek(); PROW(old, E_Peek, st[X(me)])
  :: ty == PEEKED -> peeked(); PROW(old, E_Peeked, st[X(me)])
#endif
  :: ty == RELEASE ->
    z = (rser[X(me)] == se);
    if
    :: rser[X(me)] == se -> rser[X(me)] = 0; rfor[X(me)] = 0; rver[X(me)] = 0
    :: else
    fi;
#ifdef BUG_RELEASED_ONLY_IF_RETAINED
    if
    :: z -> fault[me * N + from]!RELEASED, pg, 0, 0, 0, 0, se, 0
    :: else
    fi;
#else
    fault[me * N + from]!RELEASED, pg, 0, 0, 0, 0, se, 0;
#endif
    PROW(old, E_Release, st[X(me)])
  :: ty == EVICTGRANTED ->
    assert(EVICTING(st[X(me)]));
    frame[X(me)] = 0;
    st[X(me)] = P_Absent;
    PROW(old, E_EvictGranted, st[X(me)])
  :: ty == EVICTDENIED ->
    if
    :: st[X(me)] == P_EvictOwner -> st[X(me)] = P_Owner
    :: st[X(me)] == P_EvictExclusive -> st[X(me)] = P_Exclusive
    :: else -> assert(st[X(me)] == P_EvictGone); st[X(me)] = P_Absent
    fi;
    PROW(old, E_EvictDenied, st[X(me)])
  fi
}
/* An invalidate-class message has come to me. */
inline deliver_invalidate() {
  old = st[X(me)];
#ifdef PEEK
  if
  :: se > heard[me] -> heard[me] = se
  :: else
  fi;
#endif
  if
  :: ty == INVALIDATE ->
    ev = E_Invalidate;
    ak = 0;
    revocation();
    PROW(old, E_Invalidate, st[X(me)])
  :: else ->
    assert(PENDING(st[X(me)]) && !HAS(acked[X(me)], from));
    acked[X(me)] = acked[X(me)] | BIT(from);
    install();
    PROW(old, E_Ack, st[X(me)])
  fi
}
