/* The model of page.pml: what a node does. Inlines of one step, with its scratch variables. */

/* A store by me: nobody else may read. */
inline store() {
#ifndef LIVE
  assert(frame[X(me)] == latest[pg]);
  for (i : 0 .. N - 1) {
    if
    :: i != me && alive[i] -> assert(!READABLE(st[X(i)]))
    :: else
    fi
  };
  latest[pg]++;
  frame[X(me)] = latest[pg];
#endif
  skip
}

inline request(k, copy) {
  kind[X(me)] = k;
  fault[LANE(k) + me * N + view[X(me)]]!REQUEST, pg, me, k, copy, 0, 0, 0
}

#ifdef PEEK
inline request_peeking(o) {
  tx[me]++;
  pk[me] = ASKED;
  fault[me * N + o]!PEEK_, pg, me, 0, 0, 0, tx[me], 0;
  kind[X(me)] = READ;
  fault[LANE(READ) + me * N + view[X(me)]]!REQUEST, pg, me, READ, 0, o + 1, heard[me], 0
}
/* What was granted with bytes that were refused is given back. */
inline decline() {
  st[X(me)] = P_Absent;
  fault[me * N + view[X(me)]]!DONE, pg, me, 0, 1, 0, gser[X(me)], 0;
  kind[X(me)] = 0; got[X(me)] = 0; gright[X(me)] = 0; gsrc[X(me)] = 0; gser[X(me)] = 0; gver[X(me)] = 0;
  need[X(me)] = 0; acked[X(me)] = 0; pk[me] = 0; pver[me] = 0
}
#ifdef BUG_PEEK_WHILE_UPGRADING
#define UPGRADING (st[X(me)] == P_OwnerUpgrade)
#else
#define UPGRADING false
#endif
#if defined(HOLD) || defined(PIN)
#define UNUSED (!held[X(me)] && !pinned[X(me)] && dtype[X(me)] == 0)
#else
#define UNUSED true
#endif
/* A reader, `from`, asks for the bytes, transaction `se`. */
inline peek() {
  if
  :: st[X(me)] == P_Owner || UPGRADING || (st[X(me)] == P_Exclusive && UNUSED) ->
#ifndef BUG_PEEKED_AND_WRITTEN
    if
    :: st[X(me)] == P_Exclusive -> st[X(me)] = P_Owner
    :: else
    fi;
#endif
    fault[me * N + from]!PEEKED, pg, from, 0, 1, 0, se, frame[X(me)]
  :: else -> fault[me * N + from]!PEEKED, pg, from, 0, 0, 0, se, 0
  fi
}
inline peeked() {
  if
  :: pk[me] == ASKED && se == tx[me] ->
    if
    :: fl -> pk[me] = HERE; pver[me] = ve
    :: else -> pk[me] = REFUSED
    fi;
    install()
  :: else
  fi
}
#endif

#ifdef BUG_GRANT_BEFORE_LAST_ACK
#define ALL_ACKED true
#else
#define ALL_ACKED ((need[X(me)] & ~acked[X(me)]) == 0)
#endif
/* Everything of the request is here: install, Done, and the instruction that waited runs. */
inline install() {
  if
#ifdef PEEK
  :: got[X(me)] && gsrc[X(me)] == S_PEEKED && pk[me] == ASKED
  :: got[X(me)] && gsrc[X(me)] == S_PEEKED && pk[me] == REFUSED -> decline()
  :: got[X(me)] && ALL_ACKED && !(gsrc[X(me)] == S_PEEKED && pk[me] != HERE) ->
#else
  :: got[X(me)] && ALL_ACKED ->
#endif
#ifndef LIVE
    if
    :: gsrc[X(me)] == S_PAYLOAD -> frame[X(me)] = gver[X(me)]
    :: gsrc[X(me)] == S_ZERO -> frame[X(me)] = 0
    :: gsrc[X(me)] == S_STORED -> frame[X(me)] = stored[pg]
#ifdef PEEK
    :: gsrc[X(me)] == S_PEEKED -> frame[X(me)] = pver[me]
#endif
    :: else
    fi;
#endif
#ifdef PEEK
    pk[me] = 0; pver[me] = 0;
#endif
    rser[X(me)] = 0; rfor[X(me)] = 0; rver[X(me)] = 0;
    x = kind[X(me)];
    if
    :: gright[X(me)] == R_EXCLUSIVE -> st[X(me)] = P_Exclusive
    :: gright[X(me)] == R_OWNER -> st[X(me)] = P_Owner
    :: else -> st[X(me)] = P_Shared
    fi;
    if
    :: x == OVER -> frame[X(me)] = latest[pg]; store()
    :: x == WRITE -> store()
    :: else -> assert(frame[X(me)] == latest[pg])
    fi;
    fault[me * N + view[X(me)]]!DONE, pg, me, 0, 0, 0, gser[X(me)], 0;
#if defined(HOLD)
    held[X(me)] = 1;
#endif
    kind[X(me)] = 0; got[X(me)] = 0; gright[X(me)] = 0; gsrc[X(me)] = 0; gser[X(me)] = 0; gver[X(me)] = 0;
    need[X(me)] = 0; acked[X(me)] = 0
  :: else
  fi
}

/* Gives the page to `rq`: what a Forward (ev) asks. */
inline serve() {
  if
  :: ev == E_ForwardRead ->
    fault[LANE(READ) + me * N + rq]!ANSWER, pg, rq, R_SHARED, S_PAYLOAD, ak, se, frame[X(me)];
#ifndef BUG_READER_WITHOUT_PROTECTION
    if
    :: st[X(me)] == P_Exclusive -> st[X(me)] = P_Owner
    :: st[X(me)] == P_EvictExclusive -> st[X(me)] = P_EvictOwner
    :: else
    fi
#endif
  :: else ->
    z = R_EXCLUSIVE;
    if
    :: ev == E_ForwardAdopt && st[X(me)] != P_Exclusive && st[X(me)] != P_EvictExclusive -> z = R_OWNER
    :: else
    fi;
    fault[me * N + rq]!ANSWER, pg, rq, z, S_PAYLOAD, ak, se, frame[X(me)];
    rser[X(me)] = se; rfor[X(me)] = rq; rver[X(me)] = frame[X(me)];
    gone()
  fi
}
inline gone() {
  frame[X(me)] = 0;
  if
  :: EVICTING(st[X(me)]) -> st[X(me)] = P_EvictGone
  :: st[X(me)] == P_Upgrade || st[X(me)] == P_OwnerUpgrade -> st[X(me)] = P_FetchWrite
  :: else -> st[X(me)] = P_Absent
  fi
}
/* Takes the copy away for `rq`, and says so to it. */
inline revoke() {
  if
  :: READABLE(st[X(me)]) || EVICTING(st[X(me)]) ->
    if
    :: OWNING(st[X(me)]) -> rser[X(me)] = se; rfor[X(me)] = rq; rver[X(me)] = frame[X(me)]
    :: else
    fi;
    gone()
  :: else
  fi;
  inval[me * N + rq]!ACK, pg, rq, 0, 0, 0, se, 0
}
/* The deferred revocation, if it waits for nothing any more. */
#if defined(HOLD) || defined(PIN)
inline perform() {
  if
  :: dtype[X(me)] != 0 && !held[X(me)] && !pinned[X(me)] ->
    ev = dtype[X(me)]; rq = dreq[X(me)]; se = dser[X(me)]; ak = dacks[X(me)];
    dtype[X(me)] = 0; dreq[X(me)] = 0; dser[X(me)] = 0; dacks[X(me)] = 0;
    if
    :: ev == E_Invalidate -> revoke()
    :: else -> serve()
    fi
  :: else
  fi
}
#endif
#define REVOCABLE_LATER \
  (st[X(me)] == P_Exclusive || (ev != E_ForwardRead && (st[X(me)] == P_Owner || st[X(me)] == P_Shared)))
#ifdef BUG_PIN_IGNORED
#define MUST_WAIT (held[X(me)])
#else
#define MUST_WAIT (held[X(me)] || pinned[X(me)])
#endif
/* A revocation that has come: now, or deferred. */
inline revocation() {
#if defined(HOLD) || defined(PIN)
  if
  :: REVOCABLE_LATER && MUST_WAIT ->
    assert(dtype[X(me)] == 0);
    dtype[X(me)] = ev; dreq[X(me)] = rq; dser[X(me)] = se; dacks[X(me)] = ak
  :: else ->
    assert(!pinned[X(me)]);
    if
    :: ev == E_Invalidate -> revoke()
    :: else -> serve()
    fi
  fi
#else
  if
  :: ev == E_Invalidate -> revoke()
  :: else -> serve()
  fi
#endif
}
