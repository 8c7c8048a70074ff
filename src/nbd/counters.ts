/** What the NBD server counts, all since the start unless said otherwise. Plain numbers, read by whoever exports metrics. */
export interface NbdCounters {
  /** Connections accepted. */
  connections: number;
  /** Connections open now. */
  openConnections: number;
  /** Connections in transmission now. */
  clients: number;
  /** Connections turned away or evicted because of a limit. */
  refusedConnections: number;
  /** Connections dropped because they stopped half-way, took no answers or were silent for too long. */
  timeouts: number;
  tlsFailures: number;
  protocolErrors: number;
  /** Options answered with an error. */
  optionErrors: number;
  requests: number;
  /** Requests answered with an error. */
  requestErrors: number;
  bytesIn: number;
  bytesOut: number;
}

export function newCounters(): NbdCounters {
  return {
    connections: 0,
    openConnections: 0,
    clients: 0,
    refusedConnections: 0,
    timeouts: 0,
    tlsFailures: 0,
    protocolErrors: 0,
    optionErrors: 0,
    requests: 0,
    requestErrors: 0,
    bytesIn: 0,
    bytesOut: 0,
  };
}
