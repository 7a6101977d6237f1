// Reads server-sent events: gives the JSON of each, and leaves out comments and the last `[DONE]`.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).trim());
      else if (line.trim() === "" && data.length) {
        const event = data.join("\n");
        data = [];
        if (event !== "[DONE]") yield JSON.parse(event);
      }
    }
  }
}
