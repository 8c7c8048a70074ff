/** What the iSCSI side counts, all since the start unless said otherwise. Plain numbers, read by whoever exports metrics. */
export interface IscsiCounters {
  /** Connections accepted. */
  connections: number;
  /** Connections open now. */
  openConnections: number;
  /** Connections turned away or evicted because of a limit. */
  refusedConnections: number;
  loginsSucceeded: number;
  loginsFailed: number;
  /** Logins refused because CHAP did not prove who the initiator is. */
  authenticationFailures: number;
  /** Logins that did not end in time. */
  loginTimeouts: number;
  /** Normal sessions in full-feature phase now. */
  sessions: number;
  /** Sessions replaced by a new login of the same initiator port. */
  reinstatements: number;
  commands: number;
  taskManagement: number;
  pdusIn: number;
  pdusOut: number;
  bytesIn: number;
  bytesOut: number;
  headerDigestErrors: number;
  dataDigestErrors: number;
  rejects: number;
  protocolErrors: number;
  /** Commands outside the CmdSN window, ignored as the RFC says. */
  ignoredCommands: number;
  /** Commands answered with TASK SET FULL because memory was short. */
  taskSetFull: number;
  /** Connections dropped because the peer answered no ping or took no data. */
  deadPeers: number;
}

export function newCounters(): IscsiCounters {
  return {
    connections: 0,
    openConnections: 0,
    refusedConnections: 0,
    loginsSucceeded: 0,
    loginsFailed: 0,
    authenticationFailures: 0,
    loginTimeouts: 0,
    sessions: 0,
    reinstatements: 0,
    commands: 0,
    taskManagement: 0,
    pdusIn: 0,
    pdusOut: 0,
    bytesIn: 0,
    bytesOut: 0,
    headerDigestErrors: 0,
    dataDigestErrors: 0,
    rejects: 0,
    protocolErrors: 0,
    ignoredCommands: 0,
    taskSetFull: 0,
    deadPeers: 0,
  };
}
