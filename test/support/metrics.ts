/** What a running program says of itself under `--metrics`. */

/** All metrics as text. A scrape begins a new window of those that have one. */
export async function scrape(port: number): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${port}/metrics`);
  if (!response.ok) throw new Error(`metrics: ${response.status}`);
  return response.text();
}

/** Seconds: the 99th percentile of the event loop's delay. */
export function loopDelay(text: string): number {
  const match =
    /^\w*event_?loop_?(?:lag|delay)\w*p99\w* ([\d.e+-]+)$/m.exec(text) ??
    /^\w*event_?loop_?(?:lag|delay)\w*\{[^}]*quantile="0\.99"[^}]*\} ([\d.e+-]+)$/m.exec(text);
  if (match === null) throw new Error(`no event-loop delay among the metrics:\n${text.slice(0, 3000)}`);
  return Number(match[1]);
}
