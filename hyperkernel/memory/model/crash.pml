/* The model of page.pml: a loss and what follows. */

#ifdef CRASH
/* Node x is gone, and with it all that is under way, because the epoch changes. Survivors report; the home, or node 1
 * if it was the home, rebuilds; all in one step, because nothing else is done meanwhile. */
inline crash() {
  crashed = 1;
  alive[x] = 0;
  pg = 0;
  for (i : 0 .. LANES * N * N - 1) {
    do
    :: len(fault[i]) > 0 -> fault[i]?ty, z, rq, kd, fl, ak, se, ve
    :: else -> break
    od
  };
  for (i : 0 .. N * N - 1) {
    do
    :: len(inval[i]) > 0 -> inval[i]?ty, z, rq, kd, fl, ak, se, ve
    :: else -> break
    od
  };
  do
  :: len(mirror) > 0 -> mirror?z
  :: else -> break
  od;
  do
  :: len(waiting[0]) > 0 -> waiting[0]?rq, kd, fl AND_PEEK
  :: else -> break
  od;
  /* What the home knows: dold the entry's state for the table, y what held at rest, z its owner. */
  dold = ds[0]; y = ds[0]; z = NOBODY;
  if
  :: at[0] == x ->
    dold = D_Elsewhere; y = D_Elsewhere; ever[0] = mirrored[0];
    at[0] = (x == 0 -> 1 : 0)
  :: else ->
    if
    :: ds[0] == D_Mirroring -> y = before[0]
    :: ds[0] == D_Settling -> y = after[0]; z = aowner[0]
    :: ds[0] == D_Busy ->
      if
      :: EVICTING(st[creq[0]]) && alive[creq[0]] -> y = after[0]; z = aowner[0]
      :: !(EVICTING(st[creq[0]]) && alive[creq[0]]) && (ckind[0] == READ || alive[creq[0]]) -> y = before[0]
      :: else
      fi
    :: else
    fi;
    if
    :: z == NOBODY && (OWNED(y) || (y == D_Busy && OWNED(before[0]))) -> z = downer[0]
    :: else
    fi
  fi;
  /* Every survivor gives up what is under way. */
  for (i : 0 .. N - 1) {
    view[i] = at[0];
#ifdef PEEK
    pk[i] = 0; pver[i] = 0;
#endif
    kind[i] = 0; got[i] = 0; gright[i] = 0; gsrc[i] = 0; gser[i] = 0; gver[i] = 0; need[i] = 0; acked[i] = 0;
    if
    :: !alive[i] -> st[i] = P_Absent; frame[i] = 0; rser[i] = 0; rfor[i] = 0; rver[i] = 0
    :: else ->
      old = st[i];
      if
      :: st[i] == P_FetchRead || st[i] == P_FetchWrite || st[i] == P_EvictGone -> st[i] = P_Absent
      :: st[i] == P_Upgrade -> st[i] = P_Shared
      :: st[i] == P_OwnerUpgrade -> st[i] = P_Owner
      :: else
      fi;
      PROW(old, E_EpochChange, st[i])
    fi
  };
  /* ak: who can read; kd: who is Exclusive, rq: Owner (by right, or by an eviction that this home has not granted);
   * se: the highest retained serial, ve: where. */
  ak = 0; kd = NOBODY; rq = NOBODY; se = 0; ve = NOBODY;
  for (i : 0 .. N - 1) {
    if
    :: alive[i] ->
      if
      :: st[i] == P_Exclusive || (st[i] == P_EvictExclusive && i == z) -> assert(kd == NOBODY); kd = i; ak = ak | BIT(i)
      :: st[i] == P_Owner || (st[i] == P_EvictOwner && i == z) -> rq = i; ak = ak | BIT(i)
      :: st[i] == P_Shared -> ak = ak | BIT(i)
      :: else
      fi;
      if
      :: rser[i] > se -> se = rser[i]; ve = i
      :: else
      fi
    :: else
    fi
  };
  if
  :: kd != NOBODY && ak != BIT(kd) -> assert(EVICTING(st[kd])); rq = kd; kd = NOBODY
  :: else
  fi;
  downer[0] = 0; dcopy[0] = 0;
  if
  :: kd != NOBODY -> ds[0] = D_Exclusive; downer[0] = kd
  /* an Owner of a page that nobody owned: its first writer, which has lost that right to a Peek */
  :: kd == NOBODY && (y == D_Dormant || y == D_Stored) && rq == NOBODY -> ds[0] = y; dcopy[0] = ak
  :: kd == NOBODY && !((y == D_Dormant || y == D_Stored) && rq == NOBODY) && ak != 0 ->
    ds[0] = D_Shared;
    dcopy[0] = ak;
    downer[0] = (rq != NOBODY -> rq : (HAS(ak, 0) -> 0 : (HAS(ak, 1) -> 1 : 2)))
  :: else ->
    if
#ifdef BUG_REVIVES_STALE
    :: ve != NOBODY && ever[0] ->
#else
    :: ve != NOBODY && ever[0] && alive[rfor[ve]] ->
#endif
      if
      :: st[rfor[ve]] == P_EvictExclusive -> ds[0] = D_Exclusive; downer[0] = rfor[ve]
      :: st[rfor[ve]] == P_EvictOwner -> ds[0] = D_Shared; downer[0] = rfor[ve]; dcopy[0] = BIT(rfor[ve])
      :: else -> ds[0] = D_Exclusive; downer[0] = ve
      fi
    :: else ->
#ifdef BUG_LOST_IS_ZERO
      ds[0] = D_Dormant
#else
      ds[0] = (ever[0] -> D_Lost : D_Dormant)
#endif
    fi
  fi;
  DROW(dold, DE_Rebuild, ds[0]);
#ifdef PEEK
  serial[0]++;
  owned = serial[0];   /* serials of an epoch are above those of earlier ones, and nobody has heard of these */
#endif
  rel[0] = 0; relnode[0] = 0; relser[0] = 0; frozen[0] = 0;
  forget_current();
  /* Every survivor is told what it has. */
  for (i : 0 .. N - 1) {
    if
    :: alive[i] ->
      old = st[i];
      if
      :: OWNED(ds[0]) && downer[0] == i ->
        if
        :: st[i] == P_Absent -> frame[i] = rver[i]
        :: else
        fi;
        st[i] = (ds[0] == D_Exclusive -> P_Exclusive : P_Owner);
        assert(frame[i] == latest[0])
      :: EVICTING(st[i]) && !(OWNED(ds[0]) && downer[0] == i) -> st[i] = P_Absent; frame[i] = 0
      :: else -> assert(st[i] == P_Absent || (st[i] == P_Shared && HAS(dcopy[0], i) && frame[i] == latest[0]))
      fi;
      rser[i] = 0; rfor[i] = 0; rver[i] = 0;
      PROW(old, E_Reconciled, st[i])
    :: else
    fi
  };
  assert(ds[0] != D_Dormant || latest[0] == 0);
  assert(ds[0] != D_Stored || latest[0] == stored[0])
}
#endif

/* What happens beside the nodes: the second node's word, re-homing, a crash; and the end. */
